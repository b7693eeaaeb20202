"""Constrained answers: a constraint becomes a compiled grammar, a grammar a guide for each answer. No torch of ours in it."""
