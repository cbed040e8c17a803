--
-- At most N in any 60 seconds.
--
SELECT regpilot.create_project('ratelimit test') AS project \gset
SELECT key_id, key FROM regpilot.create_key(:'project', 'free') \gset

-- the plan's limit: ten pass, and are told how many are left
SELECT i, a.verdict, a.requests_per_minute, a.remaining, a.retry_after IS NULL AS no_retry_after
FROM generate_series(1, 10) i, LATERAL regpilot.authorize(:'key', CASE WHEN i > 0 THEN 'gateway:write' END) a;

-- the eleventh does not; the time to wait is a whole number of seconds that covers the time of the reset
SELECT verdict, requests_per_minute, remaining, retry_after BETWEEN 1 AND 61 AS retry_after,
	reset_at - clock_timestamp() BETWEEN make_interval(secs => retry_after - 1.5) AND make_interval(secs => retry_after) AS agree
FROM regpilot.authorize(:'key');

-- other keys have their own windows, also of one project
SELECT verdict, remaining FROM regpilot.create_key(:'project', 'another') k, LATERAL regpilot.authorize(k.key::regpilot.secret);

-- refused requests are not counted
SELECT regpilot.flush_usage() >= 0;
SELECT total_requests FROM regpilot.key_overview WHERE key_id = :'key_id';

-- environments share the window
SELECT verdict FROM regpilot.authorize(:'key', environment => 'ci');

-- a limit of the key goes before its plan's; raised, lowered, taken away
UPDATE regpilot.api_key SET requests_per_minute = 12 WHERE id = :'key_id';
SELECT verdict, requests_per_minute, remaining FROM regpilot.authorize(:'key');
UPDATE regpilot.api_key SET requests_per_minute = 3 WHERE id = :'key_id';
SELECT verdict, requests_per_minute, remaining FROM regpilot.authorize(:'key');
UPDATE regpilot.api_key SET requests_per_minute = NULL WHERE id = :'key_id';
UPDATE regpilot.project SET plan = 'enterprise' WHERE id = :'project';
SELECT verdict, plan, requests_per_minute, remaining, reset_at FROM regpilot.authorize(:'key');
UPDATE regpilot.project SET plan = 'startup' WHERE id = :'project';
SELECT verdict, plan, requests_per_minute, remaining FROM regpilot.authorize(:'key');
UPDATE regpilot.plan SET requests_per_minute = 5 WHERE name = 'startup';
SELECT verdict, requests_per_minute FROM regpilot.authorize(:'key');
UPDATE regpilot.plan SET requests_per_minute = 100 WHERE name = 'startup';

-- a place stays taken when the transaction that took it rolls back
SELECT key AS once FROM regpilot.create_key(:'project', 'once', requests_per_minute => 1) \gset
BEGIN;
SELECT verdict FROM regpilot.authorize(:'once');
ROLLBACK;
SELECT verdict FROM regpilot.authorize(:'once');

-- the largest limit there is
SELECT verdict, requests_per_minute, remaining
FROM regpilot.create_key(:'project', 'largest', requests_per_minute => 2147483647) k,
	LATERAL regpilot.authorize(k.key::regpilot.secret);

DELETE FROM regpilot.project WHERE id = :'project';
