"""When was what shown: events and TR to one window of the stimulus for each volume."""
