"""The quickstart, the comparison of pretrainings, and their reports."""
