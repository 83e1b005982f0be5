"""Workers: lease a shard, refine it, commit, publish."""
