/*-------------------------------------------------------------------------
 *
 * columns.h
 *		Rows to and from SQL as columns: an array for each.  Many rows so take
 *		one execution of a statement, which has the arrays as parameters.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_COLUMNS_H
#define REGPILOT_COLUMNS_H

#include "postgres.h"

/* The type of a column's elements, and what arrays of it are made of. */
typedef struct ColumnType
{
	Oid element;
	Oid array;
	int16 length;
	bool by_value;
	char alignment;
} ColumnType;

extern const ColumnType column_uuid;
extern const ColumnType column_text;
extern const ColumnType column_int4;
extern const ColumnType column_int8;
extern const ColumnType column_timestamptz;

/* An array of the elements, palloc'd; "nulls", if not NULL, says which are null. */
extern Datum column_array(const ColumnType *type, Datum *values, bool *nulls, int count);

/*
 * The elements of an array, palloc'd, of which there must be so many; *nulls says
 * which are null, and if "nulls" is NULL none may be.  Raises ERRCODE_DATA_CORRUPTED
 * if it is otherwise.
 */
extern Datum *column_values(const ColumnType *type, Datum array, bool **nulls, int count);

#endif /* REGPILOT_COLUMNS_H */
