"""What runs on CPU nodes once every shard is refined."""
