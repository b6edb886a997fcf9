"""Quality of predictions: metrics of two masks, of a folder of cases, and the comparison of several runs."""
