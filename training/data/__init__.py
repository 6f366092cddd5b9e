"""Read a data set: files, labels, order, balance; fit the scene that it shows."""
