"""What a plan will take, before anything runs: seconds of a step and bytes of a device."""
