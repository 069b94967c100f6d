"""What the Model health page shows: read models over the mart, without a line of HTML."""
