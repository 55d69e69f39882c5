"""One command per file: the docstring is its help, `configure` declares the options, `run` does the work."""
