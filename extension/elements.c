/*-------------------------------------------------------------------------
 *
 * elements.c
 *		The elements of array arguments.
 *
 *-------------------------------------------------------------------------
 */
#include "elements.h"

#include "utils/array.h"
#include "utils/lsyscache.h"

Elements
elements_of(FunctionCallInfo fcinfo, int argument, int count)
{
	Elements elements;
	ArrayType *array;
	int16 length;
	bool by_value;
	char alignment;

	if (PG_ARGISNULL(argument))
		ereport(ERROR, (errcode(ERRCODE_NULL_VALUE_NOT_ALLOWED),
						errmsg("array argument %d must not be null", argument + 1),
						errdetail("Only its elements may be null."),
						errhint("Give each request one element in every array.")));

	array = PG_GETARG_ARRAYTYPE_P(argument);
	get_typlenbyvalalign(ARR_ELEMTYPE(array), &length, &by_value, &alignment);
	deconstruct_array(array, ARR_ELEMTYPE(array), length, by_value, alignment, &elements.values,
					  &elements.nulls, &elements.count);

	if (count >= 0 && elements.count != count)
		ereport(ERROR,
				(errcode(ERRCODE_ARRAY_SUBSCRIPT_ERROR), errmsg("array arguments differ in length"),
				 errdetail("Argument 1 has %d elements, argument %d has %d.", count, argument + 1,
						   elements.count),
				 errhint("Give each request one element in every array.")));
	return elements;
}
