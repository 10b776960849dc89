"""What a run will cost, estimated without its data and its card: `leeml plan`."""
