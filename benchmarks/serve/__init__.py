"""`baton bench serve`: load on any OpenAI endpoint, and what came of it. `main` reads like the run; `measure` defines every figure."""
