/*-------------------------------------------------------------------------
 *
 * elements.h
 *		The elements of array arguments: of functions that are told of many
 *		requests at once, one element of each array for each.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_ELEMENTS_H
#define REGPILOT_ELEMENTS_H

#include "postgres.h"

#include "fmgr.h"

#include "compat.h"

/* The elements of one array, palloc'd; those of types passed by reference point into it. */
typedef struct Elements
{
	Datum *values;
	bool *nulls;
	int count;
} Elements;

/*
 * The elements of an argument, which must be there (ERRCODE_NULL_VALUE_NOT_ALLOWED)
 * and have as many as the first one (count, or -1 to read the first;
 * ERRCODE_ARRAY_SUBSCRIPT_ERROR).
 */
extern Elements elements_of(FunctionCallInfo fcinfo, int argument, int count);

/* An element as a pointer, NULL if it is null. */
static inline void *
element_pointer(const Elements *elements, int i)
{
	return elements->nulls[i] ? NULL : DatumGetPointer(elements->values[i]);
}

/* As above, for text, detoasted. */
static inline const text *
element_text(const Elements *elements, int i)
{
	return elements->nulls[i] ? NULL : DatumGetTextPP(elements->values[i]);
}

#endif /* REGPILOT_ELEMENTS_H */
