# Verdicts while the tables are worked on: a good key is never refused for it.

use strict;
use warnings;
use lib 't/lib';
use PostgreSQL::Test::Utils;
use RegPilot::Test;
use Test::More;
use Time::HiRes qw(time);

my $site = RegPilot::Test->new(responder => 0);
my $node = $site->node;
my ($key_id, $key) = $site->create_key;

sub verdict { return $site->sql("SELECT verdict FROM regpilot.authorize('$key')") }

# Two sessions whose turn we decide.
my $admin = $node->background_psql('regpilot');
my $client = $node->background_psql('regpilot');

# A request that waits for a table to be rewritten sees its new rows.
foreach my $table (qw(api_key project plan))
{
	$admin->query_safe('BEGIN');
	$admin->query_safe("ALTER TABLE regpilot.$table ADD COLUMN rewritten float DEFAULT random()");
	$client->query_until(qr/asked/, "\\echo asked\nSELECT verdict FROM regpilot.authorize('$key');\n");
	$node->poll_query_until('regpilot',
		q{SELECT count(*) = 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%authorize%' AND pid <> pg_backend_pid()});
	$admin->query_safe('COMMIT');
	like($client->query('SELECT 1'), qr/^ok$/m, "$table is rewritten while a request waits: the key is good");
	$admin->query_safe("ALTER TABLE regpilot.$table DROP COLUMN rewritten");
}

# An index that is replaced under an open transaction.
$client->query_safe('BEGIN');
is($client->query_safe("SELECT verdict FROM regpilot.authorize('$key')"), 'ok', 'before the indexes are replaced');
foreach my $table (qw(api_key project plan))
{
	$admin->query_safe("REINDEX TABLE CONCURRENTLY regpilot.$table");
}
is($client->query_safe("SELECT verdict FROM regpilot.authorize('$key')"), 'ok', 'and after, in the same transaction');
$client->query_safe('COMMIT');

# All of it under load.
my $end = time + 5;
my $counts = $site->in_parallel(
	5,
	sub {
		my ($n) = @_;
		my %count;
		while (time < $end)
		{
			if ($n == 0)
			{
				$site->sql($_) foreach ('REINDEX TABLE CONCURRENTLY regpilot.api_key',
					'VACUUM FULL regpilot.project', 'CLUSTER regpilot.api_key USING api_key_pkey');
				next;
			}
			$count{$_}++ foreach split /\n/,
			  $site->sql(join ';', ("SELECT verdict FROM regpilot.authorize('$key')") x 50);
		}
		return \%count;
	});
is_deeply([ keys %$counts ], ['ok'], 'tables rewritten and reindexed under load: no error, no refusal');
cmp_ok($site->overview($key_id, 'total_requests'), '==', $counts->{ok} + 5, 'and each request counted once');

# A synchronous standby that is not there does not hold up a stop.
$admin->quit;
$client->quit;
$node->append_conf('postgresql.conf', q{synchronous_standby_names = 'nobody'});
$node->reload;
$node->poll_query_until('regpilot', q{SELECT current_setting('synchronous_standby_names') = 'nobody'});
is(verdict(), 'ok', 'authorized, with a synchronous standby missing');
my $start = time;
$node->stop('fast');
cmp_ok(time - $start, '<', 10, 'the server stops');
$node->append_conf('postgresql.conf', q{synchronous_standby_names = ''});
$node->start;
$site->wait_for_worker;
is($site->overview($key_id, 'total_requests'), $counts->{ok} + 6, 'with all that was counted');

done_testing();
