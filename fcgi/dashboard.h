/*
 * dashboard.h
 *	  The dashboard: its page, and the API for that; and what a key may read of its project.
 */
#ifndef REGPILOT_DASHBOARD_H
#define REGPILOT_DASHBOARD_H

#include "exchange.h"

/* What is part of the program: the page, and /openapi.json. */
extern void dashboard_asset(Exchange *exchange);

/* /dashboard, where people go, to /dashboard/, where the page is. */
extern void dashboard_redirect(Exchange *exchange);

/* /dashboard/api/... */
extern void dashboard_api(Exchange *exchange);

/* GET /api/logs and /api/analytics, for the key's project. */
extern void dashboard_key_logs(Exchange *exchange);
extern void dashboard_key_analytics(Exchange *exchange);

#endif
