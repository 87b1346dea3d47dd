"""`pwm top`: snapshot.py reads a beat, tables.py says what a row shows, rows.py draws only those in
sight, feed.py keeps the stream alive, app.py is the screen. plain.py is the same tables as text, once."""
