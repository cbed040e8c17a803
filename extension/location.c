/*-------------------------------------------------------------------------
 *
 * location.c
 *		Hints where the row and the usage slot of a key are, in shared memory.
 *
 * A digest belongs in one set of as many hints as fill a cache line.  There are
 * no locks.  Row, buffer and slot are an atomic number each, read whole or not at
 * all; that a row of one key and a slot of another come together does no more harm
 * than any other wrong hint.
 *
 * All databases share the hints.  One of another database is just as wrong as
 * one of a row that is gone.
 *
 *-------------------------------------------------------------------------
 */
#include "location.h"

#include "access/htup_details.h"
#include "port/atomics.h"
#include "storage/shmem.h"

#define SET_SIZE 4 /* of 16 bytes: a cache line */

/*
 * Where a row is, with a tag of the digest that it has, in an atomic number.  The
 * bits do for blocks of up to 32 kB.
 */
typedef union RowHint
{
	uint64 number; /* 0: nothing is known yet */
	struct
	{
		uint64 block : 32;
		uint64 offset : 11; /* in the block's line pointers; none has 0 */
		uint64 begin : 12;	/* in the block, in units of ROW_UNIT */
		uint64 tag : 9;
	} row;
} RowHint;

#define ROW_UNIT 8 /* bytes; rows are MAXALIGNed */

StaticAssertDecl(sizeof(RowHint) == sizeof(uint64), "a row's hint is not one number");
StaticAssertDecl(MaxHeapTuplesPerPage < 1 << 11 && BLCKSZ / ROW_UNIT <= 1 << 12,
				 "a row's hint has too few bits");

typedef struct Hint
{
	pg_atomic_uint64 row;	 /* a RowHint */
	pg_atomic_uint32 buffer; /* as in Location */
	pg_atomic_uint32 slot;	 /* as in Location */
} Hint;

typedef struct HintSet
{
	Hint hints[SET_SIZE]; /* used from the first on, and never given back */
} HintSet;

static HintSet *sets;
static Size set_count; /* a power of two */

/* Room for two hints a key: then few sets have more keys than hints. */
Size
location_size(void)
{
	set_count = 1;
	while (set_count * SET_SIZE < 2 * (Size) regpilot_max_keys)
		set_count *= 2;
	return mul_size(set_count, sizeof(HintSet));
}

void
location_attach(void)
{
	bool found;

	sets = ShmemInitStruct("regpilot locations", location_size(), &found);
	for (Size i = 0; !found && i < set_count * SET_SIZE; i++)
	{
		Hint *hint = &sets[i / SET_SIZE].hints[i % SET_SIZE];

		pg_atomic_init_u64(&hint->row, 0);
		pg_atomic_init_u32(&hint->buffer, InvalidBuffer);
		pg_atomic_init_u32(&hint->slot, LOCATION_NO_SLOT);
	}
}

/* The set for a digest.  Its bits are as good as random; find_hint() uses others. */
static HintSet *
find_set(const uint8 digest[KEY_DIGEST_LENGTH])
{
	uint32 number;

	memcpy(&number, digest, sizeof(number));
	return &sets[number & (set_count - 1)];
}

static RowHint
read_row(Hint *hint)
{
	return (RowHint){.number = pg_atomic_read_u64(&hint->row)};
}

/*
 * The hint for a digest, or if there is none the one to use for it, and the tag
 * that tells which.
 */
static Hint *
find_hint(const uint8 digest[KEY_DIGEST_LENGTH], uint64 *tag)
{
	HintSet *set = find_set(digest);
	RowHint row = {0};

	memcpy(&row.number, digest + sizeof(uint32), sizeof(row.number));
	*tag = row.row.tag;
	for (int i = 0; i < SET_SIZE; i++)
	{
		row = read_row(&set->hints[i]);
		if (row.number == 0 || row.row.tag == *tag)
			return &set->hints[i];
	}
	return &set->hints[*tag % SET_SIZE];
}

void
location_prefetch(const uint8 digest[KEY_DIGEST_LENGTH])
{
	if (sets != NULL) /* that is, if preloaded */
		__builtin_prefetch(find_set(digest));
}

Location
location_recall(const uint8 digest[KEY_DIGEST_LENGTH])
{
	Location location = {.buffer = InvalidBuffer, .slot = LOCATION_NO_SLOT};
	uint64 tag;
	Hint *hint = find_hint(digest, &tag);
	RowHint row = read_row(hint);

	if (row.number != 0 && row.row.tag == tag)
	{
		ItemPointerSet(&location.row, row.row.block, row.row.offset);
		location.begin = row.row.begin * ROW_UNIT;
		location.buffer = (Buffer) pg_atomic_read_u32(&hint->buffer);
		location.slot = pg_atomic_read_u32(&hint->slot);
	}
	return location;
}

static void
set_if_other(pg_atomic_uint32 *number, uint32 value)
{
	if (pg_atomic_read_u32(number) != value)
		pg_atomic_write_u32(number, value);
}

void
location_remember(const uint8 digest[KEY_DIGEST_LENGTH], const Location *location)
{
	uint64 tag;
	Hint *hint = find_hint(digest, &tag);
	RowHint row = {0};

	row.row.block = ItemPointerGetBlockNumber(&location->row);
	row.row.offset = ItemPointerGetOffsetNumber(&location->row);
	row.row.begin = location->begin / ROW_UNIT;
	row.row.tag = tag;

	/* mostly they are there, and what nobody writes to stays in all caches */
	if (pg_atomic_read_u64(&hint->row) != row.number)
		pg_atomic_write_u64(&hint->row, row.number);
	set_if_other(&hint->buffer, (uint32) location->buffer);
	set_if_other(&hint->slot, location->slot);
}
