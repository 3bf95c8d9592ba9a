"""The command lines: they parse arguments and print results. The work itself happens in other packages."""
