"""Work in several processes: start and end them, collective operations, a watchdog."""
