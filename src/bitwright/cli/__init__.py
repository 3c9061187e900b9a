"""The command line: one file per command under ``commands/``, found by file name and imported when called."""
