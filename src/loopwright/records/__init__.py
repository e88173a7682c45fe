"""Ground floor: what the stages hand each other."""
