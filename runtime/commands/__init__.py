"""One module for each command of `specc`, with a function `run(args) -> exit code`."""
