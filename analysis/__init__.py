"""What it learned: from run directories to scores, maps and pages."""
