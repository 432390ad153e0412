"""`pogmdm evaluate`: retrospective undersampling of full scans, all methods, one table and one page."""
