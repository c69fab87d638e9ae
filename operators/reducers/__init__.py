"""Token reducers: one file per method, named like its operator."""
