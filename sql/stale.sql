--
-- Stale keys: flagged when nobody has used them for regpilot.stale_after, until
-- they are used or reviewed.
--
DELETE FROM regpilot.project;
SELECT regpilot.create_project('stale test', 'enterprise') AS project \gset

-- A key made so many days ago, and used and reviewed so many days ago, or never (NULL).
CREATE FUNCTION aged_key(project uuid, name text, created float, used float DEFAULT NULL, reviewed float DEFAULT NULL)
RETURNS void LANGUAGE sql AS $$
	SELECT regpilot.import_key($1, $2, sha256(('key ' || $2)::bytea));
	UPDATE regpilot.api_key SET created_at = now() - interval '24 hours' * $3, reviewed_at = now() - interval '24 hours' * $5
		WHERE name = $2;
	INSERT INTO regpilot.key_usage SELECT id, 'prod', 1, 0, 0, 0, now() - interval '24 hours' * $4
		FROM regpilot.api_key WHERE name = $2 AND $4 IS NOT NULL;
$$;
CREATE VIEW flags AS
	SELECT name, flagged_at BETWEEN now() - interval '1 minute' AND now() AS flagged_now FROM regpilot.key_overview;

SELECT aged_key(:'project', 'made 91', 91), aged_key(:'project', 'made 89', 89),
	aged_key(:'project', 'made 200, used 91', 200, 91), aged_key(:'project', 'made 200, used 89', 200, 89),
	aged_key(:'project', 'made 200, reviewed 91', 200, NULL, 91), aged_key(:'project', 'made 200, reviewed 89', 200, NULL, 89),
	aged_key(:'project', 'made 200, used 91, reviewed 89', 200, 91, 89), aged_key(:'project', 'made 200, used 89, reviewed 91', 200, 89, 91),
	aged_key(:'project', 'used 91 and, elsewhere, 89', 200, 91),
	aged_key(:'project', 'used a moment ago', 200),
	aged_key(:'project', 'revoked', 200), aged_key(:'project', 'disabled', 200), aged_key(:'project', 'expired', 200),
	aged_key(:'project', 'expires later', 200);
INSERT INTO regpilot.key_usage SELECT id, 'dev', 1, 0, 0, 0, now() - interval '89 days'
	FROM regpilot.api_key WHERE name = 'used 91 and, elsewhere, 89';
SELECT verdict FROM regpilot.authorize('key used a moment ago');
SELECT regpilot.revoke_key(id) FROM regpilot.api_key WHERE name = 'revoked';
SELECT regpilot.disable_key(id) FROM regpilot.api_key WHERE name = 'disabled';
UPDATE regpilot.api_key SET expires_at = now() - interval '1 day' WHERE name = 'expired';
UPDATE regpilot.api_key SET expires_at = now() + interval '1 day' WHERE name = 'expires later';

-- as an admin; once is enough
SET ROLE regpilot_admin;
SELECT regpilot.flag_stale_keys();
SELECT regpilot.flag_stale_keys();
RESET ROLE;
SELECT * FROM flags ORDER BY name COLLATE "C";

-- Review takes a flag off, and the time begins anew; so does use.
SELECT regpilot.review_key(id) FROM regpilot.api_key WHERE name IN ('made 91', 'made 89');
SELECT name, reviewed_at BETWEEN now() - interval '1 minute' AND now() AS reviewed, flagged_at
FROM regpilot.api_key WHERE name IN ('made 91', 'made 89') ORDER BY name;
SELECT verdict FROM regpilot.authorize('key made 200, used 91');
SELECT regpilot.flag_stale_keys();
SELECT * FROM flags WHERE flagged_now ORDER BY name COLLATE "C";
DELETE FROM regpilot.project;

-- more than stale_after, not as much; in hours, of which not every day has 24
SELECT regpilot.create_project('stale test', 'enterprise') AS project \gset
SELECT aged_key(:'project', 'a', 10);
SELECT created_at FROM regpilot.key_overview \gset
SELECT regpilot.flag_stale_keys(:'created_at'::timestamptz + interval '2160 hours');
SELECT regpilot.flag_stale_keys(:'created_at'::timestamptz + interval '2160 hours 1 microsecond');
DELETE FROM regpilot.project;
SELECT regpilot.create_project('stale test', 'enterprise') AS project \gset
SELECT aged_key(:'project', 'a', 10, 5);
SELECT last_used_at FROM regpilot.key_overview \gset
SELECT regpilot.flag_stale_keys(:'last_used_at'::timestamptz + interval '2160 hours');
SELECT regpilot.flag_stale_keys(:'last_used_at'::timestamptz + interval '2160 hours 1 microsecond');

-- flagged ahead of time, it stays so until it is used or reviewed
SELECT * FROM flags;
SELECT regpilot.flag_stale_keys();
SELECT regpilot.flag_stale_keys(now() - interval '1 year');
SELECT * FROM flags;
SELECT verdict FROM regpilot.authorize('key a');
SELECT regpilot.flag_stale_keys();
SELECT * FROM flags;
SELECT regpilot.flag_stale_keys(now() + interval '91 days');
SELECT regpilot.review_key(id) FROM regpilot.api_key;
SELECT * FROM flags;
DELETE FROM regpilot.project;

-- as of a time gone by: the flag is as old, and what has been used since then has none
SELECT regpilot.create_project('stale test', 'enterprise') AS project \gset
SELECT aged_key(:'project', 'used since', 200, 1), aged_key(:'project', 'not used since', 200, 150),
	aged_key(:'project', 'made since', 40);
SELECT regpilot.flag_stale_keys(now() - interval '1200 hours');
SELECT name, now() - flagged_at BETWEEN interval '1200 hours' AND interval '1200 hours 1 minute' AS flagged_then
FROM regpilot.key_overview ORDER BY name;
DELETE FROM regpilot.project;

-- what has expired by then is not looked at
SELECT regpilot.create_project('stale test', 'enterprise') AS project \gset
SELECT aged_key(:'project', 'expires', 10);
UPDATE regpilot.api_key SET expires_at = now() + interval '90 days';
SELECT regpilot.flag_stale_keys(now() + interval '91 days');
SELECT regpilot.flag_stale_keys(now() + interval '85 days');

-- the setting
SELECT regpilot.review_key(id) FROM regpilot.api_key;
UPDATE regpilot.api_key SET reviewed_at = now() - interval '2 days';
SET regpilot.stale_after = '3d';
SELECT regpilot.flag_stale_keys();
SET regpilot.stale_after = '1d';
SELECT regpilot.flag_stale_keys();
RESET regpilot.stale_after;

-- what is not accepted, and changes nothing
SELECT * FROM error_of('SELECT regpilot.flag_stale_keys(NULL)');
SELECT * FROM error_of('SELECT regpilot.flag_stale_keys(''infinity'')');
SELECT * FROM error_of('SELECT regpilot.flag_stale_keys(''-infinity'')');
SELECT code, hint FROM error_of('SELECT regpilot.flag_stale_keys(''4714-11-24 00:00+00 BC'')');
SELECT * FROM error_of('SELECT regpilot.review_key(NULL)');
SELECT * FROM error_of('SELECT regpilot.review_key(''00000000-0000-0000-0000-000000000000'')');
SELECT code FROM error_of('SET regpilot.stale_after = 0');
SELECT * FROM flags;

-- who cannot flag or review, or change when
SET ROLE regpilot_reader;
SELECT regpilot.flag_stale_keys();
SELECT regpilot.review_key('00000000-0000-0000-0000-000000000000');
SET ROLE regpilot_responder;
SELECT regpilot.flag_stale_keys();
SELECT regpilot.review_key('00000000-0000-0000-0000-000000000000');
SET ROLE regpilot_admin;
SET regpilot.stale_after = '1d';
RESET ROLE;

-- use takes the flag off with the next flush, refusal does not
DELETE FROM regpilot.project;
SELECT regpilot.create_project('stale test', 'enterprise') AS project \gset
SELECT key FROM regpilot.create_key(:'project', 'used') \gset
SELECT key AS idle FROM regpilot.create_key(:'project', 'refused') \gset
SELECT regpilot.flag_stale_keys(now() + interval '91 days');
SELECT verdict FROM regpilot.authorize(:'key');
SELECT verdict FROM regpilot.authorize(:'idle', 'no such permission');
SELECT regpilot.flush_usage() >= 0;
SELECT name, flagged_at IS NOT NULL AS flagged FROM regpilot.key_overview ORDER BY name;

DELETE FROM regpilot.project;
DROP VIEW flags;
DROP FUNCTION aged_key;
