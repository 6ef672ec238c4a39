"""What everything else stands on: checks of arguments, numbers, progress."""
