/*-------------------------------------------------------------------------
 *
 * histogram.c
 *		Histograms of times in milliseconds, from which quantiles are told.
 *
 * A bucket is about a fifth wider than the one before, and the narrow ones hold one
 * number each: a quantile that is told from them is within 10 % of the one of the
 * rows, and exact below 10 ms.  In SQL a histogram is a bigint[] of the buckets that
 * are not empty, in their order: an element is the count, times 256, plus the bucket.
 * NULL is the empty one.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include <math.h>

#include "catalog/pg_type.h"
#include "fmgr.h"
#include "utils/array.h"

PG_FUNCTION_INFO_V1(regpilot_histogram_count);
PG_FUNCTION_INFO_V1(regpilot_histogram_merge);
PG_FUNCTION_INFO_V1(regpilot_histogram_final);
PG_FUNCTION_INFO_V1(regpilot_histogram_add);
PG_FUNCTION_INFO_V1(regpilot_histogram_quantile);

#define BUCKET_BITS 8
#define BUCKETS_MAX (1 << BUCKET_BITS)

/* What an aggregate has until now; in the aggregate's memory. */
typedef struct Histogram
{
	int used;
	int room;
	int64 *items; /* as in SQL */
} Histogram;

static int64 lower_bounds[BUCKETS_MAX + 1]; /* of the buckets; where one ends, the next begins */
static int bucket_count = 0;				/* 0: not made yet */

static void
make_buckets(void)
{
	int64 bound = 0;
	int count = 0;

	while (bound <= PG_INT32_MAX)
	{
		lower_bounds[count++] = bound;
		bound = Max(bound + 1, bound * 6 / 5);
	}
	lower_bounds[count] = bound;
	bucket_count = count;
}

/* The bucket that a time belongs to. */
static int
bucket_of(int32 time)
{
	int low = 0;
	int high;

	if (bucket_count == 0)
		make_buckets();
	high = bucket_count;
	while (high - low > 1)
	{
		int middle = (low + high) / 2;

		if (lower_bounds[middle] <= time)
			low = middle;
		else
			high = middle;
	}
	return low;
}

static int
item_bucket(int64 item)
{
	return item & (BUCKETS_MAX - 1);
}

static int64
item_count(int64 item)
{
	return item >> BUCKET_BITS;
}

/* Add to the count of a bucket. */
static void
add(Histogram *histogram, int bucket, int64 count)
{
	int low = 0;
	int high = histogram->used;

	/* the first item whose bucket is not lower */
	while (low < high)
	{
		int middle = (low + high) / 2;

		if (item_bucket(histogram->items[middle]) < bucket)
			low = middle + 1;
		else
			high = middle;
	}
	if (low < histogram->used && item_bucket(histogram->items[low]) == bucket)
	{
		histogram->items[low] += count << BUCKET_BITS;
		return;
	}

	if (histogram->used == histogram->room)
	{
		histogram->room *= 2;
		histogram->items = repalloc(histogram->items, histogram->room * sizeof(int64));
	}
	memmove(&histogram->items[low + 1], &histogram->items[low],
			(histogram->used - low) * sizeof(int64));
	histogram->items[low] = (count << BUCKET_BITS) | bucket;
	histogram->used++;
}

/* An empty one, in the current context. */
static Histogram *
make_histogram(void)
{
	Histogram *histogram = palloc(sizeof(Histogram));

	histogram->used = 0;
	histogram->room = 4;
	histogram->items = palloc(histogram->room * sizeof(int64));
	return histogram;
}

/* The items of an array: no copy where there is none to make. */
static const int64 *
array_items(ArrayType *array, int *count)
{
	if (ARR_NDIM(array) > 1 || ARR_ELEMTYPE(array) != INT8OID || ARR_HASNULL(array))
		ereport(ERROR, (errcode(ERRCODE_DATA_EXCEPTION), errmsg("this is not a histogram")));
	*count = ARR_NDIM(array) == 0 ? 0 : ARR_DIMS(array)[0];
	return (const int64 *) ARR_DATA_PTR(array);
}

static void
add_array(Histogram *histogram, ArrayType *array)
{
	int count;
	const int64 *items = array_items(array, &count);

	for (int i = 0; i < count; i++)
		add(histogram, item_bucket(items[i]), item_count(items[i]));
}

static Datum
histogram_array(const Histogram *histogram)
{
	Datum *items = palloc(histogram->used * sizeof(Datum));

	for (int i = 0; i < histogram->used; i++)
		items[i] = Int64GetDatum(histogram->items[i]);
	return PointerGetDatum(construct_array(items, histogram->used, INT8OID, sizeof(int64),
										   FLOAT8PASSBYVAL, TYPALIGN_DOUBLE));
}

/* The state of the aggregate that calls, made if there is none. */
static Histogram *
aggregate_state(FunctionCallInfo fcinfo, MemoryContext *caller)
{
	MemoryContext context;

	if (!AggCheckCallContext(fcinfo, &context))
		elog(ERROR, "not called by an aggregate");
	*caller = MemoryContextSwitchTo(context);
	return PG_ARGISNULL(0) ? make_histogram() : (Histogram *) PG_GETARG_POINTER(0);
}

/* Transition of histogram(int): one more time, unless it is not known. */
Datum
regpilot_histogram_count(PG_FUNCTION_ARGS)
{
	MemoryContext caller;
	Histogram *histogram;

	histogram = aggregate_state(fcinfo, &caller);
	if (!PG_ARGISNULL(1))
		add(histogram, bucket_of(PG_GETARG_INT32(1)), 1);
	MemoryContextSwitchTo(caller);
	PG_RETURN_POINTER(histogram);
}

/* Transition of histogram_sum(bigint[]). */
Datum
regpilot_histogram_merge(PG_FUNCTION_ARGS)
{
	MemoryContext caller;
	Histogram *histogram;
	ArrayType *array = PG_ARGISNULL(1) ? NULL : PG_GETARG_ARRAYTYPE_P(1);

	histogram = aggregate_state(fcinfo, &caller);
	if (array != NULL)
		add_array(histogram, array);
	MemoryContextSwitchTo(caller);
	PG_RETURN_POINTER(histogram);
}

Datum
regpilot_histogram_final(PG_FUNCTION_ARGS)
{
	const Histogram *histogram = PG_ARGISNULL(0) ? NULL : (Histogram *) PG_GETARG_POINTER(0);

	if (histogram == NULL || histogram->used == 0)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(histogram_array(histogram));
}

/* The sum of two, each of which may be NULL. */
Datum
regpilot_histogram_add(PG_FUNCTION_ARGS)
{
	Histogram *histogram;

	if (PG_ARGISNULL(0) && PG_ARGISNULL(1))
		PG_RETURN_NULL();
	histogram = make_histogram();
	for (int i = 0; i < 2; i++)
	{
		if (!PG_ARGISNULL(i))
			add_array(histogram, PG_GETARG_ARRAYTYPE_P(i));
	}
	PG_RETURN_DATUM(histogram_array(histogram));
}

/* The time that so great a part of all, from 0 to 1, do not exceed; NULL if there is none. */
Datum
regpilot_histogram_quantile(PG_FUNCTION_ARGS)
{
	int count;
	const int64 *items = array_items(PG_GETARG_ARRAYTYPE_P(0), &count);
	int64 total = 0;
	int64 rank;

	if (bucket_count == 0)
		make_buckets();
	for (int i = 0; i < count; i++)
		total += item_count(items[i]);
	if (total == 0)
		PG_RETURN_NULL();

	rank = Max(1, (int64) ceil(PG_GETARG_FLOAT8(1) * total));
	for (int i = 0; i < count; i++)
	{
		rank -= item_count(items[i]);
		if (rank <= 0 && item_bucket(items[i]) < bucket_count)
		{
			double least = lower_bounds[item_bucket(items[i])];
			double most = lower_bounds[item_bucket(items[i]) + 1] - 1;

			/* as far from either, in proportion */
			PG_RETURN_INT32(
				least == most ? least : Min(rint(2 * least * most / (least + most)), PG_INT32_MAX));
		}
	}
	PG_RETURN_NULL();
}
