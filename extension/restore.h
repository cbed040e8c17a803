/*-------------------------------------------------------------------------
 *
 * restore.h
 *		Whether this session is reading in a dump, in which rows come back as
 *		they were: none is seeded, and none audited.
 *
 *-------------------------------------------------------------------------
 */
#ifndef REGPILOT_RESTORE_H
#define REGPILOT_RESTORE_H

#include "regpilot.h"

extern bool restoring(void);

#endif /* REGPILOT_RESTORE_H */
