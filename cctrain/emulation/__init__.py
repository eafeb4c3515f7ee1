"""CC's tolls on a machine without CC: what they are, and paying them. Some of it needs neither torch nor a GPU."""
