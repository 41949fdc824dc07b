"""The command line: `paligemma --help`. Each command imports what is heavy when it runs."""
