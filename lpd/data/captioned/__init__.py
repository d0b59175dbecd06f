"""Images that have captions, wherever they are: folders, lists, tars and Parquet files."""
