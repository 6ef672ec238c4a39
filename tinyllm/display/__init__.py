"""How things look: tables, histograms and pages. Gets plain values and knows no model."""
