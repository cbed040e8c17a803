/*-------------------------------------------------------------------------
 *
 * compat.h
 *		The one place that knows of differences between server versions.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_COMPAT_H
#define REGPILOT_COMPAT_H

#include "postgres.h"

#include "access/genam.h"

#if PG_VERSION_NUM < 150000
#error "regpilot needs PostgreSQL 15 or later"
#endif

#if PG_VERSION_NUM >= 160000
#include "varatt.h" /* part of postgres.h before */
#endif

#ifndef pg_nodiscard /* minor versions of 15 before it had this */
#define pg_nodiscard __attribute__((warn_unused_result))
#endif

/* Begin an index scan by one scan key. */
static inline IndexScanDesc
compat_index_beginscan(Relation table, Relation index, Snapshot snapshot)
{
#if PG_VERSION_NUM >= 180000
	return index_beginscan(table, index, snapshot, NULL, 1, 0);
#else
	return index_beginscan(table, index, snapshot, 1, 0);
#endif
}

#endif /* REGPILOT_COMPAT_H */
