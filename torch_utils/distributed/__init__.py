"""Work in several processes: start and join them, collective operations, who is alive."""
