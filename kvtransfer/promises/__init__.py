"""What makes a block readable: a lease while it is read, and a digest that proves it after."""
