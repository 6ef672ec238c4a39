"""Tables, histograms and HTML pages. These modules get plain values and do not import models."""
