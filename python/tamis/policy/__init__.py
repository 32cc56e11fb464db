"""The maths of every decision a method takes, one slot per file."""
