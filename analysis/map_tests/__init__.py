"""Whether maps show what they are said to show: nuclei, fibres, no glass, and what the network uses."""
