"""Everything that keeps bytes, and `Home`, which opens the stores of one installation."""
