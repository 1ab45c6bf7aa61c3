"""What is there: runs with their files and clocks, events, stimuli."""
