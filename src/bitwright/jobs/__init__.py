"""Jobs: plan, run, resume, verify, report."""
