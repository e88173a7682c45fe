"""Stage 3, develop: features and model as one graph, candidates compared on evidence, packages."""
