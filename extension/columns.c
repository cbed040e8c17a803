/*-------------------------------------------------------------------------
 *
 * columns.c
 *		Rows to and from SQL as columns.
 *
 *-------------------------------------------------------------------------
 */
#include "columns.h"

#include "catalog/pg_type.h"
#include "utils/array.h"
#include "utils/uuid.h"

const ColumnType column_uuid = {UUIDOID, UUIDARRAYOID, UUID_LEN, false, TYPALIGN_CHAR};
const ColumnType column_text = {TEXTOID, TEXTARRAYOID, -1, false, TYPALIGN_INT};
const ColumnType column_int4 = {INT4OID, INT4ARRAYOID, 4, true, TYPALIGN_INT};
const ColumnType column_int8 = {INT8OID, INT8ARRAYOID, 8, FLOAT8PASSBYVAL, TYPALIGN_DOUBLE};
const ColumnType column_timestamptz = {TIMESTAMPTZOID, TIMESTAMPTZARRAYOID, 8, FLOAT8PASSBYVAL,
									   TYPALIGN_DOUBLE};

Datum
column_array(const ColumnType *type, Datum *values, bool *nulls, int count)
{
	int lower_bound = 1;

	return PointerGetDatum(construct_md_array(values, nulls, 1, &count, &lower_bound, type->element,
											  type->length, type->by_value, type->alignment));
}

Datum *
column_values(const ColumnType *type, Datum array, bool **nulls, int count)
{
	ArrayType *elements = DatumGetArrayTypeP(array);
	Datum *values;
	int found;

	if (ARR_ELEMTYPE(elements) != type->element)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED), errmsg("a column is of the wrong type")));
	if (nulls == NULL && array_contains_nulls(elements))
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED), errmsg("a column has an unexpected null")));
	deconstruct_array(elements, type->element, type->length, type->by_value, type->alignment,
					  &values, nulls, &found);
	if (found != count)
		ereport(ERROR, (errcode(ERRCODE_DATA_CORRUPTED),
						errmsg("columns differ in length: %d and %d", found, count)));
	return values;
}
