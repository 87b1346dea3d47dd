"""`pwm top`: snapshot.py reads a beat, columns.py says what a row shows, table.py draws only the rows in
sight, feed.py keeps the stream alive, app.py is the screen. plain.py is the same tables as text, once."""
