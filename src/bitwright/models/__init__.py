"""Models: checkpoints on disk, modules in memory or streamed, and the discovery of their structure by experiment."""
