--
-- What CREATE EXTENSION makes.
--
CREATE EXTENSION regpilot;

SELECT name, requests_per_minute FROM regpilot.plan ORDER BY requests_per_minute;
SELECT name, base_url, secret_name, connect_timeout_ms, timeout_ms FROM regpilot.upstream;
SELECT quality, alias, upstream, model, priority FROM regpilot.route ORDER BY id;

SELECT enumlabel FROM pg_enum WHERE enumtypid = 'regpilot.verdict'::regtype ORDER BY enumsortorder;

SELECT attname, format_type(atttypid, atttypmod)
FROM pg_attribute WHERE attrelid = 'regpilot.key_overview'::regclass AND attnum > 0 ORDER BY attnum;

SELECT rolname, rolcanlogin, rolsuper FROM pg_roles WHERE rolname IN ('regpilot_admin', 'regpilot_reader', 'regpilot_responder')
ORDER BY rolname;

-- settings, with their units
SELECT name, boot_val, unit, context FROM pg_settings WHERE name LIKE 'regpilot.%' ORDER BY name;
SET regpilot.no_such_setting = 1;	-- the prefix is ours

-- a schema that others own or may create in could have functions of theirs in it;
-- the context quotes the script from version 18 on
\set SHOW_CONTEXT never
DROP EXTENSION regpilot;
CREATE ROLE regress_regpilot_owner;
ALTER SCHEMA regpilot OWNER TO regress_regpilot_owner;
CREATE EXTENSION regpilot;
ALTER SCHEMA regpilot OWNER TO CURRENT_USER;
GRANT CREATE ON SCHEMA regpilot TO regress_regpilot_owner;
CREATE EXTENSION regpilot;
REVOKE CREATE ON SCHEMA regpilot FROM regress_regpilot_owner;
CREATE EXTENSION regpilot;
DROP ROLE regress_regpilot_owner;

-- dropped whole, with all that it made
DROP EXTENSION regpilot;
SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'regpilot'::regnamespace) AS relations,
	(SELECT count(*) FROM pg_type WHERE typnamespace = 'regpilot'::regnamespace) AS types,
	(SELECT count(*) FROM pg_proc WHERE pronamespace = 'regpilot'::regnamespace) AS functions;
CREATE EXTENSION regpilot;
SELECT count(*) FROM regpilot.api_key;
