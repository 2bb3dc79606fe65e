"""What is learned: the loss, the predictions and the table's columns of each task."""
