"""Write the report page of a run or a model: figures, curves, pictures."""
