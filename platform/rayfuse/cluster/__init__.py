"""Where Ray runs: today a cluster on this machine that outlives the command that started it."""
