"""Sources that come by themselves: what waits between the one who receives and the one who reads."""
