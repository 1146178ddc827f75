"""What every row needs: child processes, C programs, bars, and the table."""
