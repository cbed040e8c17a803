# A change of a project, a plan or a limit takes hold at COMMIT, in every session,
# whatever that session has seen before.

use strict;
use warnings;
use lib 't/lib';
use RegPilot::Test;
use Test::More;

my $site = RegPilot::Test->new(responder => 0);
my $node = $site->node;
my ($key_id, $key) = $site->create_key(plan => 'growth');
my $project = $site->{projects}{growth};

my $admin = $node->background_psql('regpilot');
my $client = $node->background_psql('regpilot');

sub limit
{
	my ($session) = @_;
	return $session->query_safe(
		"SELECT project, plan, requests_per_minute FROM regpilot.authorize('$key')");
}

is(limit($client), 'project growth|growth|500', 'the plan as it is');

$admin->query_safe('BEGIN');
$admin->query_safe(q{UPDATE regpilot.plan SET requests_per_minute = 400 WHERE name = 'growth'});
is(limit($admin), 'project growth|growth|400', 'the changing transaction goes by its change');
is(limit($client), 'project growth|growth|500', 'others do not before the COMMIT');
$admin->query_safe('ROLLBACK');
is(limit($admin), 'project growth|growth|500', 'nor anybody after a ROLLBACK');

$admin->query_safe('BEGIN');
$admin->query_safe('SAVEPOINT s');
$admin->query_safe("UPDATE regpilot.project SET name = 'gone' WHERE id = '$project'");
is(limit($admin), 'gone|growth|500', 'within a subtransaction');
$admin->query_safe('ROLLBACK TO s');
is(limit($admin), 'project growth|growth|500', 'and after it was rolled back');
$admin->query_safe('COMMIT');

# The client stays in a transaction that holds locks on all the tables.
foreach my $level ('READ COMMITTED', 'REPEATABLE READ', 'SERIALIZABLE')
{
	$client->query_safe("BEGIN ISOLATION LEVEL $level");
	$client->query_safe('LOCK TABLE regpilot.api_key, regpilot.project, regpilot.plan IN ACCESS SHARE MODE');
	$client->query_safe('SELECT count(*) FROM regpilot.project');
	limit($client);
	foreach my $limit (1000 .. 1020)
	{
		$admin->query_safe("UPDATE regpilot.plan SET requests_per_minute = $limit WHERE name = 'growth'");
		my $seen = limit($client);
		$seen eq "project growth|growth|$limit" or fail("$level: a limit of $limit is seen as $seen"), last;
	}
	is(limit($client), 'project growth|growth|1020', "$level: each change is seen by the next request");
	$admin->query_safe("UPDATE regpilot.project SET plan = 'enterprise' WHERE id = '$project'");
	is(limit($client), 'project growth|enterprise|', "$level: so is a change of plan");
	$admin->query_safe("UPDATE regpilot.api_key SET requests_per_minute = 77 WHERE id = '$key_id'");
	is(limit($client), 'project growth|enterprise|77', "$level: and a limit of the key's own");
	$admin->query_safe("UPDATE regpilot.api_key SET requests_per_minute = NULL WHERE id = '$key_id'");
	$admin->query_safe("UPDATE regpilot.project SET plan = 'growth' WHERE id = '$project'");
	$client->query_safe('COMMIT');
}

# Renamed, as replication would do it; and a plan.
limit($client);
$admin->query_safe(q{SET session_replication_role = replica});
$admin->query_safe("UPDATE regpilot.project SET name = 'renamed' WHERE id = '$project'");
is(limit($client), 'renamed|growth|1020', 'a change that fires ALWAYS triggers only');
$admin->query_safe(q{RESET session_replication_role});
$admin->query_safe(q{UPDATE regpilot.plan SET name = 'growing' WHERE name = 'growth'});
is(limit($client), 'renamed|growing|1020', 'a plan by another name');

# More projects than a session keeps.
$site->sql(<<~SQL);
	INSERT INTO regpilot.project (name, plan) SELECT 'many ' || i, 'startup' FROM generate_series(1, 3000) i;
	INSERT INTO regpilot.api_key (project_id, name, hint, digest, permissions)
	SELECT id, name, 'sk_...', sha256(name::bytea), '{gateway:write}' FROM regpilot.project WHERE name LIKE 'many %';
	SQL
my $all = q{SELECT count(*) FILTER (WHERE (a).project = name AND (a).requests_per_minute = 100), count(*)
	FROM (SELECT name, regpilot.authorize(name::regpilot.secret) a FROM (SELECT 'many ' || i AS name FROM generate_series(1, 3000) i) n OFFSET 0) v};
is($client->query_safe($all), '3000|3000', 'each of 3,000 keys has its own project') for 1 .. 2;

$admin->quit;
$client->quit;
done_testing();
